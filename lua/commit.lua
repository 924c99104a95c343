#!lua flags=allow-oom
-- commit: store one batch of transitions of one shard, for many runs at once, all or nothing.
--
-- The central verb. First every check: the owner's token, the commit's id, the types of all keys that will be written,
-- and each run's header, byte for byte (it has the version and the last commit id). Then only writes that can't fail:
-- records, log, agenda, listings, outbox, attempts for queues, quarantine, puts; the inbox messages that were reduced are
-- deleted.
-- Safe to run twice, and late: a commit id that the shard has as its last one, or that is before it, answers DUP with
-- the facts of the last one, and changes nothing.
-- The commits of an owner are numbered without gaps, from 1 for each token. One whose number is not the next one comes
-- from an owner that knows of commits that this server has lost, or doesn't know of one that it has: BEHIND, and nothing
-- is decided from what that owner remembers.
-- Reducers (they have a state) keep only the newest transitions in their record: their state is their snapshot. A state
-- that begins with a dash (no snapshot does) replaces the record: header, the rest of the state, this transition.
-- An expected header '' is that of a run that doesn't exist. Repeats are for what an owner commits again that a server had
-- lost: messages behind the given one that have one of these identities have come again, and are removed; if too many
-- have come since, CONFLICT without ids.
-- The log gets the transitions as they are, but for those that have a cut: in its place, without large payloads. A cut
-- that begins with a plus goes behind the transition instead, as more elements of its array: what readers of the log need.
-- An attempt of a queued step is added to its queue's partition of this shard, one without a body is revoked
-- (`shared/attempts.lua`): what the server has of a decision, it has of its attempts.
-- A put sets a field of a hash, or deletes it when the value is ''; without a field it sets a string that expires after
-- 15 minutes.
--
-- KEYS   owner,
--        inbox,
--        kept,
--        log,
--        agenda,
--        outbox,
--        poison,
--        then for each listing: index;
--        for each put: put;
--        for each queue: stream, steps, details;
--        for each run: run
-- ARGV   token, (of the owner)
--        commit, (id of this commit)
--        now, (the owner's time)
--        channel,
--        notification, (published to the channel; '' for none)
--        counts, (of listings, acks, plans, moves, sends, sent, poisons, cuts, states, reports, puts, queues and
--        attempts, and of repeats if there are any: 4 bytes each)
--        then for each run: expected, header, transition;
--        for each ack: inbox id;
--        for each plan: id, score ('' removes the run from the agenda);
--        for each move: id, from, to, score (from and to: positions among the index keys, 0 for none);
--        for each send: number, messages (an entry of the outbox, with one message or many);
--        for each sent: outbox number;
--        for each poison: inbox id, id, reason, event, body, kind, begun (the header of a start), sender (its identity);
--        for each cut: position (of its run among the runs, from 1), logged (in place of the transition, or `+` and what goes behind it);
--        for each state: position, state;
--        for each report: position (of its attempt among the attempts), details (what an attempt before has reported);
--        for each attempt: queue (its position among the queues, from 1), step, attempt (`<created> <attempt>`), body
--        ('' revokes it);
--        for each repeat: identity (instead of the first one: up to which message the inbox was looked through);
--        for each put: field, value
-- RETURNS OK clock entry (of the log, '' when nothing was logged)
--         / DUP clock entry
--         / CONFLICT id… (the runs whose header is not the expected one)
--         / FENCED token (of the present owner)
--         / BEHIND commit (the shard's last one, '' for none)
--         / WRONGTYPE key
-- @include shared/holds
-- @include shared/in_log
-- @include shared/current_entry
-- @include shared/attempts
-- @include shared/came_again
-- @include shared/clock
-- @include shared/commit_distance
-- @include shared/counts
-- @include shared/kept
-- @include shared/run_id
local owner, inbox, kept, log, agenda, outbox, poison = unpack(KEYS, 1, 7)
local token, commit, channel, notification = ARGV[1], ARGV[2], ARGV[4], ARGV[5]
local indexes, acks, plans, moves, sends, sent, poisons, cuts, states, reports, puts, queues, attempts, repeats =
  unpack_counts(ARGV[6])
local FIXED_KEYS, FIXED_ARGS = 7, 6
local RUN_ARGS, PLAN_ARGS, MOVE_ARGS, SEND_ARGS, POISON_ARGS, PAIR_ARGS, PUT_ARGS = 3, 2, 4, 2, 8, 2, 2 -- of one item
local RUN_ID, DASH = run_id_begins(owner), string.byte('-')
-- A reducer's record is trimmed to so many when it has twice as many; of quarantined messages about so many are kept.
local REDUCER_TRANSITIONS, QUARANTINED_MESSAGES = 200, 1000
local ANSWER_SECONDS, IDS_PER_CALL, VALUES_PER_ENTRY = 900, 1000, 4000 -- `unpack` fails at about 8,000 values

-- Positions in KEYS of the last index, put and key of a queue; the runs are behind them.
local last_index = FIXED_KEYS + indexes
local last_put, last_queue = last_index + puts, last_index + puts + QUEUE_KEYS * queues
local runs = #KEYS - last_queue

local stored = redis.pcall('HMGET', owner, 'token', 'commit', 'clock', 'log', 'committed')
if stored.err then return redis.error_reply('WRONGTYPE ' .. owner) end
if stored[1] ~= token then return {'FENCED', stored[1] or ''} end
local ahead = commit_distance(commit, stored[2])
if stored[2] == commit or (ahead and ahead < 0) then return {'DUP', stored[5], stored[4]} end
if ahead and ahead ~= 1 then return {'BEHIND', stored[2] or ''} end
if acks + poisons > 0 and not holds(inbox, 'stream') then return redis.error_reply('WRONGTYPE ' .. inbox) end
local noted = acks + poisons + (repeats or 0) > 0 and redis.pcall('GET', kept) or '' -- how many the owner has read, and the last
if type(noted) == 'table' then return redis.error_reply('WRONGTYPE ' .. kept) end
if runs + poisons > 0 and not holds(log, 'stream') then return redis.error_reply('WRONGTYPE ' .. log) end
if plans > 0 and not holds(agenda, 'zset') then return redis.error_reply('WRONGTYPE ' .. agenda) end
if sends + sent > 0 and not holds(outbox, 'stream') then return redis.error_reply('WRONGTYPE ' .. outbox) end
if poisons > 0 and not holds(poison, 'stream') then return redis.error_reply('WRONGTYPE ' .. poison) end
for i = FIXED_KEYS + 1, last_put do
  local field = #ARGV - PUT_ARGS * (last_put - i) - 1 -- position of the put's field, if it is a put: they come last
  local wanted = i <= last_index and 'zset' or ARGV[field] == '' and 'string' or 'hash'
  if not holds(KEYS[i], wanted) then return redis.error_reply('WRONGTYPE ' .. KEYS[i]) end
end
local queue_list, foreign = open_queues(last_put + 1, last_queue)
if foreign then return redis.error_reply('WRONGTYPE ' .. foreign) end

-- From here on `at` is the position before the first argument of an item.
local conflict, at = {'CONFLICT'}, FIXED_ARGS
for i = last_queue + 1, #KEYS do
  if (redis.pcall('LINDEX', KEYS[i], 0) or '') ~= ARGV[at + 1] then conflict[#conflict + 1] = string.sub(KEYS[i], RUN_ID) end
  at = at + RUN_ARGS
end
if #conflict > 1 then return conflict end
if repeats and not find_again(inbox, #ARGV - PUT_ARGS * puts - repeats, repeats) then return conflict end
local clock = string.format('%.0f', shard_clock(ARGV[3], stored[3]))

-- The outbox first: its numbers are the caller's, and if one were refused, nothing else would have been written.
at = FIXED_ARGS + RUN_ARGS * runs + acks + PLAN_ARGS * plans + MOVE_ARGS * moves
for _ = 1, sends do
  redis.call('XADD', outbox, ARGV[at + 1], 'messages', ARGV[at + 2])
  at = at + SEND_ARGS
end
for first = 1, sent, IDS_PER_CALL do
  redis.call('XDEL', outbox, unpack(ARGV, at + first, at + math.min(first + IDS_PER_CALL - 1, sent)))
end
at = at + sent

local entry, removed = {}, 0 -- the log entry: id and transition of each run; how many messages are gone
for _ = 1, poisons do
  redis.call('XADD', poison, 'MAXLEN', '~', QUARANTINED_MESSAGES, '*', 'run', ARGV[at + 2], 'reason', ARGV[at + 3],
    'body', ARGV[at + 5], 'message', ARGV[at + 1], 'kind', ARGV[at + 6], 'header', ARGV[at + 7], 'from', ARGV[at + 8])
  removed = removed + redis.call('XDEL', inbox, ARGV[at + 1])
  entry[#entry + 1], entry[#entry + 2] = '-' .. ARGV[at + 1], ARGV[at + 4] -- no run id begins with a dash
  at = at + POISON_ARGS
end
local logged, state_of, details_of = {}, {}, {} -- by position
for i = 1, cuts + states + reports do
  local by_position = i <= cuts and logged or i <= cuts + states and state_of or details_of
  by_position[tonumber(ARGV[at + 1])] = ARGV[at + 2]
  at = at + PAIR_ARGS
end
add_and_revoke(queue_list, attempts, at, details_of)
at = FIXED_ARGS
for i = last_queue + 1, #KEYS do
  local run, header, transition, state = KEYS[i], ARGV[at + 2], ARGV[at + 3], state_of[i - last_queue]
  if state and string.byte(state) == DASH then
    redis.call('UNLINK', run) -- the server frees a long one beside its work
    redis.call('RPUSH', run, header, string.sub(state, 2), transition)
  else
    redis.call('LSET', run, 0, header)
    redis.call('RPUSH', run, transition)
    if state then
      redis.call('LSET', run, 1, state)
      if redis.call('LLEN', run) > 2 + 2 * REDUCER_TRANSITIONS then -- 2: header and state
        redis.call('LTRIM', run, -REDUCER_TRANSITIONS, -1)
        redis.call('LPUSH', run, state, header)
      end
    end
  end
  entry[#entry + 1], entry[#entry + 2] = string.sub(run, RUN_ID), in_log(transition, logged[i - last_queue])
  at = at + RUN_ARGS
end
for first = 1, acks, IDS_PER_CALL do -- many at once: a hot run reduces thousands of messages in one transition
  removed = removed + redis.call('XDEL', inbox, unpack(ARGV, at + first, at + math.min(first + IDS_PER_CALL - 1, acks)))
end
count_down(kept, noted, removed + remove_again(inbox))
at = at + acks
for _ = 1, plans do
  if ARGV[at + 2] == '' then redis.call('ZREM', agenda, ARGV[at + 1])
  else redis.call('ZADD', agenda, ARGV[at + 2], ARGV[at + 1]) end
  at = at + PLAN_ARGS
end
for _ = 1, moves do
  local from, to = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if from > 0 then redis.call('ZREM', KEYS[FIXED_KEYS + from], ARGV[at + 1]) end
  if to > 0 then redis.call('ZADD', KEYS[FIXED_KEYS + to], ARGV[at + 4], ARGV[at + 1]) end
  at = at + MOVE_ARGS
end
for i = last_index + 1, last_put do
  local field = #ARGV - PUT_ARGS * (last_put - i) - 1
  if ARGV[field] == '' then redis.call('SET', KEYS[i], ARGV[field + 1], 'EX', ANSWER_SECONDS)
  elseif ARGV[field + 1] == '' then redis.call('HDEL', KEYS[i], ARGV[field])
  else redis.call('HSET', KEYS[i], ARGV[field], ARGV[field + 1]) end
end

local last = ''
for first = 1, #entry, VALUES_PER_ENTRY do
  last = redis.call('XADD', log, '*', unpack(entry, first, math.min(first + VALUES_PER_ENTRY - 1, #entry)))
end
redis.call('HSET', owner, 'commit', commit, 'clock', clock, 'committed', clock, 'log', last)
if notification ~= '' then redis.pcall('SPUBLISH', channel, notification) end
return {'OK', clock, last}
