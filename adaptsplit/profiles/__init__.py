"""Profiles: measured outcomes of a split model, per frame, branch and rate; what the simulator replays."""

from adaptsplit.profiles.compare import Difference, compare
from adaptsplit.profiles.measure import FrameSpec, measure
from adaptsplit.profiles.profile import Profile
from adaptsplit.profiles.progress import progress_bar
from adaptsplit.profiles.reference import folder_branches, reference_branches
from adaptsplit.profiles.summary import ProfileSummary

__all__ = [
    "Difference",
    "FrameSpec",
    "Profile",
    "ProfileSummary",
    "compare",
    "folder_branches",
    "measure",
    "progress_bar",
    "reference_branches",
]
