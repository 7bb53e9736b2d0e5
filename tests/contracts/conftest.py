"""The fixtures the contracts of the model side are run with."""

from tests.vla.conftest import one_thread, policy_folder, prompter, tiny, write_policy

__all__ = ["one_thread", "policy_folder", "prompter", "tiny", "write_policy"]
