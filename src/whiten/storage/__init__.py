"""Files wherever they are: on disk, in tar shards and Parquet tables, and under URLs of services.

Takes a path, a URL, or either followed by the name of a member (`photos-000.tar/000000001.jpg`);
returns bytes, in ranges, and a stamp that changes with them.
"""
