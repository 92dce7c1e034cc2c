// Plays a GLB file with three.js and prints where vertices and joints are: node three_reader.mjs FILE TIME [TIME ...]
// three is looked for as require() does it, so that NODE_PATH may say where it is.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'

const folder = join(dirname(createRequire(import.meta.url).resolve('three')), '..')
const load = (name) => import(pathToFileURL(join(folder, name)).href)
const THREE = await load('build/three.module.js')
const { GLTFLoader } = await load('examples/jsm/loaders/GLTFLoader.js')

const [file, ...times] = process.argv.slice(2)
const bytes = readFileSync(file)
const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength)
const gltf = await new Promise((resolve, reject) => new GLTFLoader().parse(buffer, '', resolve, reject))

let mesh
gltf.scene.traverse((object) => { if (object.isSkinnedMesh) mesh = object })
const mixer = new THREE.AnimationMixer(gltf.scene)
const action = mixer.clipAction(gltf.animations[0])
action.setLoop(THREE.LoopOnce)
action.clampWhenFinished = true
action.play()

const frames = times.map((time) => {
  mixer.setTime(Number(time))
  gltf.scene.updateMatrixWorld(true)
  const point = new THREE.Vector3()
  const vertices = []
  for (let i = 0; i < mesh.geometry.attributes.position.count; i++) {
    mesh.getVertexPosition(i, point).applyMatrix4(mesh.matrixWorld)
    vertices.push(point.toArray())
  }
  const joints = mesh.skeleton.bones.map((bone) => bone.getWorldPosition(point).toArray())
  return { vertices, joints }
})
const names = mesh.skeleton.bones.map((bone) => bone.name)
console.log(JSON.stringify({ duration: gltf.animations[0].duration, names, frames }))
