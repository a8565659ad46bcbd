#!/usr/bin/env node
import { FlashMlaError } from '@flashmla/spec'
import type { Command } from './commands/command'
import { doctor } from './commands/doctor'
import { generate } from './commands/generate'
import { inspect } from './commands/inspect'
import { logits } from './commands/logits'
import { serve as runServer, serveHelp } from './commands/serve'

const serve: Command = {
  summary: "OpenAI's API and a page that shows the cache",
  help: serveHelp,
  run: runServer,
}
const commands: Record<string, Command> = { generate, serve, inspect, logits, doctor }

const help = `flashmla <command> [options]   Multi-head Latent Attention in TypeScript

${Object.entries(commands)
  .map(([name, { summary }]) => `  ${name.padEnd(10)} ${summary}`)
  .join('\n')}

  flashmla <command> --help shows a command's options; without a command, generate runs.
  From a clone: npm start -- <command> …
`

async function main(args: readonly string[]): Promise<void> {
  const named = args[0] !== undefined && !args[0].startsWith('-')
  const name = named ? args[0]! : 'generate'
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined
  const asked = args.includes('--help') || args.includes('-h')
  if (!command || (asked && !named)) {
    if (command) process.stdout.write(help)
    else {
      process.stderr.write(`There is no command ${name}.\n\n${help}`)
      process.exitCode = 2
    }
    return
  }
  if (asked) process.stdout.write(command.help)
  else await command.run(named ? args.slice(1) : args)
}

main(process.argv.slice(2)).catch((error) => {
  const usage = String((error as { code?: string }).code).startsWith('ERR_PARSE_ARGS')
  if (!FlashMlaError.isInstance(error) && !usage) throw error
  process.stderr.write(`${error.message}\n${usage ? 'See flashmla --help.\n' : ''}`)
  process.exitCode = usage ? 2 : 1
})

// A reader that has seen enough (head, a closed pager) is no error.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0)
  throw error
})
