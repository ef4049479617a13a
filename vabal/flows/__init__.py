"""The flows: the night and the promotion for Prefect, their deployment, and a benchmark on Ray. They only wire."""

from vabal.adapters import reading

reading.reach_objects()  # whichever flow or task a process imports, images that stay in S3 can be read in it
