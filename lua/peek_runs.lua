#!lua flags=no-writes
-- peek_runs: the headers of runs, and the last transition of those that have ended. Reads only.
--
-- KEYS   for each run: run
-- ARGV   (none)
-- RETURNS for each run: header ('' when there is none), last ('' while it is open)
local answer = {}
for i, run in ipairs(KEYS) do
  local header = redis.call('LINDEX', run, 0) or ''
  local status = string.match(header, '^%a+')
  local ended = status == 'completed' or status == 'failed' or status == 'cancelled'
  answer[2 * i - 1] = header
  answer[2 * i] = ended and redis.call('LINDEX', run, -1) or ''
end
return answer
