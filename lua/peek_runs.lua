#!lua flags=no-writes
-- peek_runs: read the headers of runs, and the last transition of those that have ended.
--
-- Reads only.
--
-- KEYS   for each run: run
-- ARGV   (none)
-- RETURNS for each run: header ('' when there is none), last ('' while it is open)
local reply = {}
for i, run in ipairs(KEYS) do
  local header = redis.call('LINDEX', run, 0) or ''
  local status = string.match(header, '^%a+')
  local ended = status == 'completed' or status == 'failed' or status == 'cancelled'
  reply[2 * i - 1] = header
  reply[2 * i] = ended and redis.call('LINDEX', run, -1) or ''
end
return reply
