"""A mesh as one HTML page that shows it turning; it needs no other file and no internet connection.

The page is trimesh's viewer with three.js (MIT licence, its notice in place) and the mesh as glTF
in it. Its content policy forbids every connection, so what the page shows is in the page.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trimesh

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src data: blob:"
)
# Runs before the mesh has been decoded and takes the place of two of the viewer's functions.
_TURN = """<script>
{
  const SWING = 1.1, PERIOD = 10;  // radians to either side: a face has no back; seconds
  let held = matchMedia("(prefers-reduced-motion: reduce)").matches, angle = 0, start = null;
  for (const event of ["pointerdown", "wheel"]) {
    addEventListener(event, () => { held = true; }, {capture: true, passive: true});
  }
  tracklight.intensity = 0.35;
  scene.add(new THREE.AmbientLight(0xffffff, 0.65));  // with it 1 in front: the photo's own colours
  render = () => {
    if (start === null) {
      start = performance.now();
      scene.traverse(({material}) => {
        if (!material) return;
        Object.assign(material, {side: THREE.DoubleSide, metalness: 0, roughness: 1});
        if (material.map) material.map.encoding = THREE.LinearEncoding;  // shown as stored
      });
    }
    tracklight.position.copy(camera.position);
    renderer.render(scene, camera);
  };
  animate = () => {
    requestAnimationFrame(animate);
    if (!held) {
      const turned = SWING * Math.sin(2 * Math.PI * (performance.now() - start) / 1000 / PERIOD);
      camera.position.sub(controls.target).applyAxisAngle(camera.up, turned - angle);
      camera.position.add(controls.target);
      angle = turned;
    }
    controls.update();
    if (!held) render();
  };
}
</script>
"""


def to_html(mesh: trimesh.Trimesh, title: str) -> bytes:
    """The page of a mesh with y up and z to the viewer; it turns until somebody takes hold of it.

    Args:
        mesh: with a texture, vertex colours or neither.
        title: any text; it is escaped.

    Raises:
        ValueError: the installed trimesh has another viewer.
    """
    import trimesh  # imported here: it takes half a second, and most runs write no mesh
    from trimesh.viewer.notebook import scene_to_html

    _ = mesh.vertex_normals  # cached ones are exported, without them the page would show facets
    # a camera without a name gets a random one, and the same face another file each time
    scene = trimesh.Scene(mesh, camera=trimesh.scene.Camera(name="camera", fov=(60, 45)))
    scene.set_camera()
    page = scene_to_html(scene)
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{html.escape(title)}</title>"
    )
    page, titles = re.subn(r"<title>[^<]*</title>", lambda _: head, page, count=1)
    before, body_end, after = page.rpartition("</body>")
    if not titles or not body_end or "function animate()" not in page:
        raise ValueError(
            f"trimesh {trimesh.__version__} writes another HTML viewer than this program knows; "
            "choose another format, or install trimesh 5.2"
        )
    page = before + _TURN + body_end + after
    return page.encode("utf-8", errors="replace")  # a title from a file name may be no text
