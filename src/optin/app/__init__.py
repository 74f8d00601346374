"""The command line, the demo, and what they alone need."""
