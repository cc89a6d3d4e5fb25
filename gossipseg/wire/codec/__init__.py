"""Core messages as protobuf bytes, and back, each with its limits."""
