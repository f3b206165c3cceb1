"""Delivery: merge, publish and demo, which make what leaves the house."""
