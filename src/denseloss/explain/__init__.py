"""What a loss does and costs, apart from any training."""
