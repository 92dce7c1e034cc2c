"""Reads a GLB or BVH file with Blender and prints where vertices and joints are; for a Python that has ``bpy``.

python blender_reader.py FILE FPS FRAME [FRAME ...], frames counted from 0. Points are in Blender's world: z up, metres.
"""

import json
import sys

import bpy

file, fps, frames = sys.argv[1], float(sys.argv[2]), [int(word) for word in sys.argv[3:]]
bpy.ops.wm.read_factory_settings(use_empty=True)
scene = bpy.context.scene
scene.render.fps, scene.render.fps_base = round(fps), round(fps) / fps
if file.endswith(".bvh"):
    bpy.ops.import_anim.bvh(filepath=file, frame_start=1, update_scene_fps=False, global_scale=0.01)
else:
    bpy.ops.import_scene.gltf(filepath=file)
armature = next(item for item in scene.objects if item.type == "ARMATURE")
mesh = next((item for item in scene.objects if item.type == "MESH" and item.find_armature()), None)
first = 1 if file.endswith(".bvh") else 0  # Blender puts the first frame of a BVH file at 1
found = []
for frame in frames:
    scene.frame_set(frame + first)
    graph = bpy.context.evaluated_depsgraph_get()
    one = {"joints": {}, "vertices": []}
    posed = armature.evaluated_get(graph)
    for bone in posed.pose.bones:
        one["joints"][bone.name] = list(posed.matrix_world @ bone.head)
    if mesh is not None:
        moved = mesh.evaluated_get(graph)
        one["vertices"] = [list(moved.matrix_world @ vertex.co) for vertex in moved.to_mesh().vertices]
    found.append(one)
print("RESULT" + json.dumps({"frames": found}))
