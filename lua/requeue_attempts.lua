#!lua flags=allow-oom
-- requeue_attempts: a worker that leaves hands entries back, so that another one takes them at once under the same attempt.
--
-- Only what is still pending with this consumer, and still its step's newest, gets a new entry at the end; a revoked one
-- is taken off. The new entry carries what the step told last. Safe to run twice: the second time the entry isn't
-- pending any more.
--
-- KEYS   stream, steps, details
-- ARGV   group, consumer, then for each claim: entry, step, told ('' when there is nothing new)
-- RETURNS the number of entries handed back / WRONGTYPE key
-- @include shared/holds
-- @include shared/place
local stream, steps, details = KEYS[1], KEYS[2], KEYS[3]
local group, consumer = ARGV[1], ARGV[2]

if not holds(stream, 'stream') then return redis.error_reply('WRONGTYPE ' .. stream) end
if not holds(steps, 'hash') then return redis.error_reply('WRONGTYPE ' .. steps) end
if not holds(details, 'hash') then return redis.error_reply('WRONGTYPE ' .. details) end

local count = 0
for i = 3, #ARGV, 3 do
  local entry, step, told = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local present, created, attempt, is_revoked = place_of(steps, step)
  local mine = redis.pcall('XPENDING', stream, group, entry, entry, 1, consumer)
  local found = redis.call('XRANGE', stream, entry, entry)[1]
  if present == entry and not mine.err and mine[1] and found then
    if told == '' then told = redis.call('HGET', details, entry) or '' end
    drop_entry(stream, details, group, entry)
    if is_revoked then
      redis.call('HDEL', steps, step)
    else
      local fields = found[2]
      for n = 1, #fields, 2 do
        if fields[n] == 'details' and told ~= '' then fields[n + 1] = told end
      end
      local added = redis.call('XADD', stream, '*', unpack(fields))
      redis.call('HSET', steps, step, as_place(added, created, attempt, 'wanted'))
      count = count + 1
    end
  end
end
return count
