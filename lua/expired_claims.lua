#!lua flags=allow-oom
-- expired_claims: which entries of a queue partition have workers that fell silent, and what their steps told last.
--
-- Nothing is handed to another worker here: whoever reaps tells the run that the attempt is over, and the run decides
-- about another one. So a reply that is lost, or two that reap at once, do no harm. What is superseded is only cleaned
-- up; consumers that were quiet for long and have nothing pending are forgotten.
--
-- KEYS   stream, steps, details
-- ARGV   group, idle (ms), quiet (ms), limit
-- RETURNS for each dead entry: entry consumer id created seq attempt details / WRONGTYPE key
-- @include shared/holds
-- @include shared/place
local stream, steps, details = KEYS[1], KEYS[2], KEYS[3]
local group, idle, quiet, limit = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

if not holds(stream, 'stream') then return redis.error_reply('WRONGTYPE ' .. stream) end
if not holds(steps, 'hash') then return redis.error_reply('WRONGTYPE ' .. steps) end
if not holds(details, 'hash') then return redis.error_reply('WRONGTYPE ' .. details) end
local pending = redis.pcall('XPENDING', stream, group, 'IDLE', idle, '-', '+', limit)
if pending.err then return {} end

local answer = {}
for _, one in ipairs(pending) do
  local entry = one[1]
  local fields = {}
  local found = redis.call('XRANGE', stream, entry, entry)[1]
  for i = 1, found and #found[2] or 0, 2 do fields[found[2][i]] = found[2][i + 1] end
  local present = found and place_of(steps, (fields.run or '') .. '/' .. (fields.seq or ''))
  if present == entry then
    local told = redis.call('HGET', details, entry) or fields.details or ''
    for _, value in ipairs({entry, one[2], fields.run, fields.created or '0', fields.seq, fields.attempt, told}) do
      answer[#answer + 1] = value
    end
  else
    drop_entry(stream, details, group, entry)
  end
end
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local facts = {}
  for i = 1, #consumer, 2 do facts[consumer[i]] = consumer[i + 1] end
  if facts.pending == 0 and tonumber(facts.idle) > quiet then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, facts.name)
  end
end
return answer
