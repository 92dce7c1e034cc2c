// Prints what Khronos' glTF validator says of a file, as JSON: node validate_gltf.cjs FILE
const { validateBytes } = require('gltf-validator')
const { readFileSync } = require('node:fs')

validateBytes(new Uint8Array(readFileSync(process.argv[2]))).then((report) => console.log(JSON.stringify(report)))
