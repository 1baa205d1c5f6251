package flows

import (
	"errors"
	"sync"
	"testing"

	"github.com/ctplan/ctplan/planner/host"
)

func TestArrivals(t *testing.T) {
	const n = 5*arriveEvery + 7
	broken := errors.New("broken off")
	a := newArrivals(3) // less room than they need
	c := host.Connections{Coming: a.beyond}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			seen := 0
			for {
				list, all := c.Beyond(seen)
				for ; seen < len(list); seen++ {
					if list[seen].Mark != uint32(seen) {
						t.Errorf("connection %d has the mark %d", seen, list[seen].Mark)
					}
				}
				if all {
					break
				}
			}
			if seen != n {
				t.Errorf("%d connections came", seen)
			}
		})
	}
	for i := range n {
		a.add(&Entry{Flow: host.Flow{Mark: uint32(i)}})
	}
	a.end(broken)
	wg.Wait()
	if list, err := a.all(); len(list) != n || len(c.All()) != n || err != broken {
		t.Errorf("%d connections, %v", len(list), err)
	}
}
