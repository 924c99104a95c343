#!lua
-- post_messages: put signals, asks, and requests to cancel or terminate into the inbox, for runs that are open.
--
-- A client numbers its posts to a shard; the last number and its letters are kept, so that a post that is sent again
-- after a lost reply adds nothing and gets the same letters.
--
-- KEYS   seen, inbox, owner, then for each message: run
-- ARGV   source, number, now, then for each message: kind, id, body
-- RETURNS a string with a letter for each message: a (accepted), e (the run has ended), m (no such run) / WRONGTYPE key
-- @include shared/clock
-- @include shared/holds
local seen, inbox, owner = KEYS[1], KEYS[2], KEYS[3]
local source, number = ARGV[1], tonumber(ARGV[2])

if not holds(inbox, 'stream') then return redis.error_reply('WRONGTYPE ' .. inbox) end
local last = redis.call('HGET', seen, source)
if last then
  local last_number, _, last_letters = string.match(last, '^(%d+) (%d+) (%a*)$')
  if last_number and tonumber(last_number) >= number then return last_letters end
end
local letters = {}
for i = 4, #KEYS do
  local header = redis.call('LINDEX', KEYS[i], 0)
  local status = header and string.match(header, '^%a+')
  if not status then
    letters[i - 3] = 'm'
  elseif status == 'pending' or status == 'running' or status == 'stuck' then
    letters[i - 3] = 'a'
  else
    letters[i - 3] = 'e'
  end
end
local clock = shard_clock(ARGV[3], redis.call('HGET', owner, 'clock'))

for i, letter in ipairs(letters) do
  if letter == 'a' then
    redis.call('XADD', inbox, '*', 'kind', ARGV[3 * i + 1], 'run', ARGV[3 * i + 2], 'body', ARGV[3 * i + 3])
  end
end
local joined = table.concat(letters)
redis.call('HSET', seen, source, string.format('%.0f %.0f %s', number, clock, joined))
return joined
