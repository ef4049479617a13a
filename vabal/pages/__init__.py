"""Pages for people: a benchmark's report as one HTML file."""
