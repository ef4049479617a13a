"""Pages for people, each one HTML file: a benchmark's report, the page of a round."""
