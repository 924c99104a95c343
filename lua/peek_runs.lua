#!lua flags=no-writes
-- peek_runs: read the headers of runs, and the last transition of those that have ended.
--
-- Reads only. With buckets, a header whose third word is `asleep` stands for a run that was moved out of memory.
--
-- KEYS   for each run: run; for each run that may sleep: asleep
-- ARGV   buckets (1 if there are any; else none)
-- RETURNS for each run: header ('' when there is none), last ('' while it is open)
-- @include shared/asleep
local reply = {}
local count = ARGV[1] == '1' and #KEYS / 2 or #KEYS
for i = 1, count do
  local header = redis.call('LINDEX', KEYS[i], 0) or ''
  if header == '' and KEYS[count + i] then
    local bucket = KEYS[count + i]
    local begins = string.find(bucket, ':asleep:%x%x$') + #':run:'
    header = header_of_sleeper(bucket, string.sub(KEYS[i], begins))
  end
  local status = string.match(header, '^%a+')
  local ended = status == 'completed' or status == 'failed' or status == 'cancelled'
  reply[2 * i - 1] = header
  reply[2 * i] = ended and redis.call('LINDEX', KEYS[i], -1) or ''
end
return reply
