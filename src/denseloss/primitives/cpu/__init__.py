"""Fast versions on the CPU: one pass in C. Importing `operators` offers them."""
