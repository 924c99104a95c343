-- open_run: write the first header of a new run, list it, and put its start where its owner finds it: into the inbox, or
-- behind the starts that wait. `extras` is the trace context that the run belongs to, '' for none; behind a space, then
-- with a dash for none, what the start asks for besides (streamflow/model/start_word.py): a delay becomes a time here.
-- The header's format is that of streamflow/model/record.py; the start message carries it, so that the owner does not
-- have to load the run. A start that waits has its input in the run's record, in the place of the state.
--
-- Starts wait when the inbox has many messages, when others wait, or when their input is large. Tenants (workflows, for
-- runs without tenant) take turns: the turn of a start is one after the last of its tenant, or after the turn that the
-- owner has reached (in `turns`, under ''), whichever is later. The first few of a tenant for which nothing waits join
-- the inbox all the same, so that nobody's burst makes them wait.
local STRAIGHT = 64 -- messages in the inbox, up to which starts join them
local SHARE = 16 -- starts of a tenant that join a longer inbox, ahead of its turn
local LARGE = 4096 -- bytes of an input that the inbox doesn't take

-- How full the shard is; `inbox`: opened. An error reply if a key is of another type.
local function look_at_door(inbox, waiting, turns)
  local waits = redis.pcall('ZCARD', waiting)
  if type(waits) ~= 'number' then return redis.error_reply('WRONGTYPE ' .. waiting) end
  if not holds(turns, 'zset') then return redis.error_reply('WRONGTYPE ' .. turns) end
  return {inbox = inbox, waiting = waiting, turns = turns, waits = waits}
end

-- The turn for which a start waits; nil if it joins the inbox.
local function turn_of(door, workflow, tenant, body)
  local is_large = #body > LARGE
  if door.waits == 0 and door.inbox.length < STRAIGHT and not is_large then return nil end
  local class = tenant == '' and 'w/' .. workflow or 't/' .. tenant
  local reached = tonumber(redis.call('ZSCORE', door.turns, '') or 0)
  local turn = math.max(reached, tonumber(redis.call('ZSCORE', door.turns, class) or 0)) + 1
  redis.call('ZADD', door.turns, turn, class)
  if turn <= reached + SHARE and not is_large then return nil end
  return turn
end

local function open_run(door, run, index, tenant_index, clock, id, workflow, tenant, parent, extras, body)
  local header = table.concat({
    'pending', '0', '-', string.format('%.0f', clock), '0',
    workflow, tenant == '' and '-' or tenant, parent == '' and '-' or parent,
  }, ' ')
  if extras ~= '' then
    if string.find(extras, ' d', 1, true) then
      local trace, delay, rest = string.match(extras, '^(%S+) d(%d+)(.*)$')
      if trace then extras = string.format('%s b%.0f%s', trace, clock + tonumber(delay), rest) end
    end
    header = header .. ' - ' .. extras
  end
  local turn = turn_of(door, workflow, tenant, body)
  redis.call('RPUSH', run, header, turn and body or '')
  redis.call('ZADD', index, clock, id)
  if tenant ~= '' then redis.call('ZADD', tenant_index, clock, id) end
  if not turn then
    put_message(door.inbox, 'kind', 'start', 'run', id, 'header', header, 'body', body)
    return header
  end
  if door.waits == 0 then -- the owner looks at those that wait until there are none
    put_message(door.inbox, 'kind', 'waiting', 'run', '', 'body', '')
  end
  redis.call('ZADD', door.waiting, turn, id)
  door.waits = door.waits + 1
  return header
end
