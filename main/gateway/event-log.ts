/**
 * The last events, numbered, so that a client that was away goes on where it was. Numbers begin with the host's start time
 * in milliseconds: so they grow over a restart of the host too.
 */
export interface LoggedEvent<Event> {
  readonly sequence: number;
  readonly event: Event;
}

export interface EventLog<Event> {
  publish(event: Event): void;
  /** What came after `since`, and whether something in between is no longer known. */
  after(since: number): { readonly events: readonly LoggedEvent<Event>[]; readonly missed: boolean };
  /** Returns the unsubscriber. */
  subscribe(listener: (event: LoggedEvent<Event>) => void): () => void;
  readonly sequence: number;
}

export function createEventLog<Event>(options: { readonly capacity?: number; readonly startedAt?: Date } = {}): EventLog<Event> {
  const capacity = options.capacity ?? 1000;
  const first = (options.startedAt ?? new Date()).getTime();
  let sequence = first;
  const events: LoggedEvent<Event>[] = [];
  const listeners = new Set<(event: LoggedEvent<Event>) => void>();
  return {
    get sequence() {
      return sequence;
    },
    publish(event) {
      sequence += 1;
      const logged = { sequence, event };
      events.push(logged);
      if (events.length > capacity) events.shift();
      for (const listener of listeners) listener(logged);
    },
    after(since) {
      const oldest = events[0]?.sequence ?? sequence + 1;
      return { events: events.filter((event) => event.sequence > since), missed: since < oldest - 1 };
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
  };
}
