"""Optional company: what this package does with other libraries."""
