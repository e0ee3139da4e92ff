"""What is remembered: keys, codecs and the per-partition store."""
