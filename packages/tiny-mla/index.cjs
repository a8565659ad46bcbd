const { join } = require('node:path')

exports.modelDirectory = join(__dirname, 'model')
