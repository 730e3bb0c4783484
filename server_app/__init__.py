"""The server: composes the configuration, drives the rounds, writes the results."""
