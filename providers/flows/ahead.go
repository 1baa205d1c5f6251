package flows

import (
	"sync"

	"github.com/ctplan/ctplan/planner/host"
)

// arrivals are tracked connections of which one goroutine adds more while others
// go through those that are there.
type arrivals struct {
	mine []host.Flow // of who adds

	mu    sync.Mutex
	grown sync.Cond
	flows []host.Flow // what others may see of mine
	done  bool
	err   error
}

// arriveEvery is how many are shown at a time.
const arriveEvery = 1024

func newArrivals(room int) *arrivals {
	a := &arrivals{mine: make([]host.Flow, 0, room)}
	a.grown.L = &a.mu
	return a
}

func (a *arrivals) add(e *Entry) error {
	a.mine = append(a.mine, e.Flow)
	if len(a.mine)%arriveEvery == 0 {
		a.show(false, nil)
	}
	return nil
}

func (a *arrivals) end(err error) { a.show(true, err) }

func (a *arrivals) show(done bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flows, a.done, a.err = a.mine, done, err
	a.grown.Broadcast()
}

// beyond is host.Connections' Coming.
func (a *arrivals) beyond(n int) (flows []host.Flow, all bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for !a.done && len(a.flows) <= n {
		a.grown.Wait()
	}
	return a.flows, a.done
}

// all waits for the last.
func (a *arrivals) all() ([]host.Flow, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for !a.done {
		a.grown.Wait()
	}
	return a.flows, a.err
}
