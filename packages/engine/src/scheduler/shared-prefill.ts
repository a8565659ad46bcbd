import type { Branch } from './branch'

/**
 * True when `branch` had better wait: `leader` computes in this step pages that `branch` begins with, and that aren't
 * remembered yet. Waiting never costs it time: alone it would compute the same pages at the same pace, behind the leader.
 * It ends by itself when the leader has computed them, or no longer runs.
 */
export function awaitsPrefill(branch: Branch, leader: Branch, pageSize: number): boolean {
  if (leader.job.salt !== branch.job.salt) return false
  const { tokens } = branch
  // Whole pages; never the last token, whose logits are wanted.
  const most = Math.min(tokens.length - 1, leader.tokens.length)
  const wanted = Math.floor(most / pageSize) * pageSize
  if (wanted <= leader.computed) return false
  // The leader's next page decides: what lies past it is waited for when it is shared as well, step by step.
  const needed = Math.floor(leader.computed / pageSize) * pageSize + pageSize
  if (needed > wanted) return false
  for (let i = 0; i < needed; i++) if (tokens[i] !== leader.tokens[i]) return false
  return true
}
