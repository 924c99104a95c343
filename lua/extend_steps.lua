#!lua flags=allow-oom
-- extend_steps: ask whether attempts that a former owner of a shard still runs are needed, and store their details.
--
-- The counterpart of `extend_claims` for steps without a queue: `steps` names the host of each such attempt. Details
-- that its step has reported since are stored for the next attempt, behind `created` of its run. Safe to run twice.
--
-- KEYS   steps, details
-- ARGV   for each lent step: step, host, created, attempt, details ('' when there is nothing new)
-- RETURNS a string with a letter for each: k (kept), l (lost: stop it) / WRONGTYPE key
-- @include shared/holds
-- @include shared/current_entry
local steps, details = KEYS[1], KEYS[2]

if not holds(steps, 'hash') then return redis.error_reply('WRONGTYPE ' .. steps) end
if not holds(details, 'hash') then return redis.error_reply('WRONGTYPE ' .. details) end

local letters = {}
for i = 1, #ARGV, 5 do
  local step, reported = ARGV[i], ARGV[i + 4]
  local runs_at, created, attempt = current_entry(steps, step)
  local letter = 'l'
  if runs_at == ARGV[i + 1] and created == tonumber(ARGV[i + 2]) and attempt == tonumber(ARGV[i + 3]) then
    if reported ~= '' then redis.call('HSET', details, step, ARGV[i + 2] .. ' ' .. reported) end
    letter = 'k'
  end
  letters[#letters + 1] = letter
end
return table.concat(letters)
