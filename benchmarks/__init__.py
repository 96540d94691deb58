"""Speed and memory of every loss against what people use today: `python -m benchmarks`."""
