"""Drawing speech tokens: `request` (what is asked), `scheduler` (for whom), `engine` (steps), `sampler` (one draw)."""
