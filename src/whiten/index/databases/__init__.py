"""Indexes in Milvus or PostgreSQL: addresses, connections, tables and filters.

Takes blocks of rows; returns matches, as a folder does.
"""
