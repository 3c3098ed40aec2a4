"""The same index in Milvus or PostgreSQL: addresses, connections, tables and filters.

Blocks of rows enter; matches leave, as from a folder.
"""
