#!lua flags=allow-oom
-- post_requests: put requests to cancel, terminate, pause or resume into the inbox, for runs that are open; also when memory is short.
--
-- Like `post_messages`, whose numbers it shares: it is another verb because its messages end work or hold it up, and so free memory.
--
-- KEYS   seen, inbox, kept, owner, then for each message: run; for each run that may sleep: asleep
-- ARGV   source, number (with = before it: what a server may have lost of the posts up to this one), now,
--        then for each message: kind, id, body, created (of what is posted again also its identity and number)
-- RETURNS a string with a letter for each message: a (accepted), e (the run has ended), m (no such run), d (what is
--         posted again is there, or its run has taken it) / ASLEEP (some runs of the shard sleep: call again with all
--         buckets) / WRONGTYPE key
-- @include shared/asleep
-- @include shared/clock
-- @include shared/inbox
-- @include shared/post
return post_all(KEYS, ARGV)
