"""Adapters, one a library: each builds from the same vectors, opens what it built, and answers the same queries."""
