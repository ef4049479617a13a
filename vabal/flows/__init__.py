"""The flows: the night and the promotion for Prefect, their deployment, and a benchmark on Ray. They only wire."""
