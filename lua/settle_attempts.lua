#!lua flags=allow-oom
-- settle_attempts: put the outcomes of attempts into the shard's inbox, and remove their entries from the queue.
--
-- An outcome counts only while its entry is the step's current one, and wanted: then the run that waits for it is open.
-- One of an attempt that was given up, replaced or revoked doesn't reach the run. An entry without outcome is only
-- removed. Safe to run twice: the second time an entry isn't there any more.
--
-- KEYS   inbox, kept, stream, steps, details
-- ARGV   group, then for each claim: entry, step, body (the outcome; '' for none)
-- RETURNS a string with a letter for each claim: a (accepted), r (revoked, or without outcome), l (lost) / WRONGTYPE key
-- @include shared/holds
-- @include shared/inbox
local stream, steps, details = KEYS[3], KEYS[4], KEYS[5]
local group = ARGV[1]

local inbox = open_inbox(KEYS[1], KEYS[2])
if inbox.err then return inbox end
if not holds(stream, 'stream') then return redis.error_reply('WRONGTYPE ' .. stream) end
if not holds(steps, 'hash') then return redis.error_reply('WRONGTYPE ' .. steps) end
if not holds(details, 'hash') then return redis.error_reply('WRONGTYPE ' .. details) end

local wanted = {}
for i = 2, #ARGV, 3 do wanted[#wanted + 1] = ARGV[i + 1] end
local stored = redis.call('HMGET', steps, unpack(wanted))
local letters, entries, ended = {}, {}, {}
for n, step in ipairs(wanted) do
  local entry, body = ARGV[3 * n - 1], ARGV[3 * n + 1]
  local current, mark = string.match(stored[n] or '', '^(%S+) .* (%a+)$')
  local letter = 'l'
  if current == entry then
    letter = 'r'
    ended[#ended + 1] = step
    if mark == 'wanted' and body ~= '' then
      put_message(inbox, 'kind', 'outcome', 'run', string.match(step, '^(.*)/'), 'body', body)
      letter = 'a'
    end
  end
  letters[n], entries[n] = letter, entry
end
redis.pcall('XACK', stream, group, unpack(entries))
redis.call('XDEL', stream, unpack(entries))
redis.call('HDEL', details, unpack(entries))
if #ended > 0 then redis.call('HDEL', steps, unpack(ended)) end
return table.concat(letters)
