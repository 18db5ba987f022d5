"""Networks, one file per published system, below one folder per domain."""
