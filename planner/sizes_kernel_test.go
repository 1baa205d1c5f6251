package planner

import "testing"

func TestRoundBuckets(t *testing.T) {
	for _, tt := range []struct{ n, page, pointer, want int64 }{
		{100000, 4096, 8, 100352}, {131072, 4096, 8, 131072}, {1, 4096, 8, 512}, {1, 65536, 8, 8192}, {1, 4096, 4, 1024}, {7, 0, 0, 7},
	} {
		if got := RoundBuckets(tt.n, tt.page, tt.pointer); got != tt.want {
			t.Errorf("RoundBuckets(%d, %d, %d) = %d, want %d", tt.n, tt.page, tt.pointer, got, tt.want)
		}
	}
}
