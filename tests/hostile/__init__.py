"""Inputs of people who mean no good, or have no luck: each ends in one clear line."""
