"""The networks: students, teachers, and their deploy forms.

Invariant: importing this package imports no torch; building a network does.
"""
