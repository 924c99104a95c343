#!lua
-- post_messages: put messages (signals, cancel requests) for runs that exist and are open into the inbox.
--
-- A client numbers its posts to a shard; the last number and its answers are kept, so that a post that is sent again
-- after a lost reply adds nothing and gets the same answers.
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
  local last_number, _, answers = string.match(last, '^(%d+) (%d+) (%a*)$')
  if last_number and tonumber(last_number) >= number then return answers end
end
local answers = {}
for i = 4, #KEYS do
  local header = redis.call('LINDEX', KEYS[i], 0)
  local status = header and string.match(header, '^%a+')
  if not status then
    answers[i - 3] = 'm'
  elseif status == 'pending' or status == 'running' or status == 'stuck' then
    answers[i - 3] = 'a'
  else
    answers[i - 3] = 'e'
  end
end
local clock = shard_clock(ARGV[3], redis.call('HGET', owner, 'clock'))

for i, answer in ipairs(answers) do
  if answer == 'a' then
    redis.call('XADD', inbox, '*', 'kind', ARGV[3 * i + 1], 'run', ARGV[3 * i + 2], 'body', ARGV[3 * i + 3])
  end
end
local letters = table.concat(answers)
redis.call('HSET', seen, source, string.format('%.0f %.0f %s', number, clock, letters))
return letters
