/** A subcommand of the command line. */
export interface Command {
  /** One line for the list of commands. */
  readonly summary: string
  readonly help: string
  run(args: readonly string[]): Promise<void>
}
