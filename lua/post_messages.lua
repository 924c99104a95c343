#!lua
-- post_messages: put signals and asks into the inbox, for runs that are open, and retries for those that have failed.
--
-- A client numbers its posts to a shard; the last number and its letters are kept, so that a post that is sent again
-- after a lost reply adds nothing and gets the same letters, and one that arrives behind newer ones adds nothing.
-- `created` is that of the run that a message is for, '' for whichever has the id: a newer run of the id is another one.
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
