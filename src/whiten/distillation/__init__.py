"""Teachers and images -> a student.

Images and a `DistillSpec` enter; a run folder with the student, its targets and its metrics
leaves. Pairs, fusion, losses and the training loop are here.
"""
