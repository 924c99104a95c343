#!lua flags=no-writes
-- read_chunks: read what a run's steps have emitted from an entry on, as much of it as fits into one reply.
--
-- The header comes from the same moment: what a run that has ended has emitted is all there.
--
-- KEYS   run, chunks
-- ARGV   made (when the entries that the caller knows were begun; else it gets the first ones), entry, limit (bytes)
-- RETURNS header ('' if there is no run), made ('' if nothing was emitted), first, next (numbers of entries), chunks
--         (how many were emitted), then for each entry: number, text / WRONGTYPE key
-- @include shared/holds
local run, chunks = KEYS[1], KEYS[2]
if not holds(run, 'list') then return redis.error_reply('WRONGTYPE ' .. run) end
if not holds(chunks, 'hash') then return redis.error_reply('WRONGTYPE ' .. chunks) end
local header = redis.call('LINDEX', run, 0) or ''
local known = redis.call('HMGET', chunks, 'created', 'made', 'first', 'next', 'chunks')
if not known[1] or known[1] ~= string.match(header, '^%a+ %d+ %S+ (%d+)') then return {header, '', '1', '1', '0'} end
local answer = {header, known[2], known[3], known[4], known[5]}
local first, next, left = tonumber(known[3]), tonumber(known[4]), tonumber(ARGV[3])
local number = known[2] == ARGV[1] and math.max(first, tonumber(ARGV[2])) or first
while number < next and left > 0 do
  local entry = redis.call('HGET', chunks, number) or ''
  answer[#answer + 1], answer[#answer + 2] = string.format('%d', number), entry
  number, left = number + 1, left - #entry
end
return answer
