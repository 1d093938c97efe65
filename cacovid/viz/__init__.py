"""Pictures of what was kept: `write_overlay` draws a contact sheet or a video."""

from __future__ import annotations

from cacovid.viz.overlay import check_overlay_path, write_overlay

__all__ = ["check_overlay_path", "write_overlay"]
