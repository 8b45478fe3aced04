"""Threads, processes, the installation: forks, OpenMP's teams, one maker of a thing that several threads want.

Owns: what has nothing to do with speech. Must not import: `kvcache`, `models`, `engine`, `synthesis`, `cli`.
"""

from chatterbox.runtime.installation import require_own_package

require_own_package()
