// A process that leaves resources behind, for a test of the report at its exit.
import { Context, DeviceMemory, Driver, Stream } from '../index'
import { FakeDriver } from './fake-driver'

const context = new Context({ device: 0, driver: new Driver({ api: new FakeDriver() }) })
const stream = new Stream(context)
new DeviceMemory(stream, 48)
if (process.argv.includes('exit')) process.exit()
stream[Symbol.dispose]()
