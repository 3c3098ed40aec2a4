"""What a run is: its options, the recipes that complete them, and its folder.

Options of a user enter; a complete `DistillSpec` and the paths of a run leave.
"""
