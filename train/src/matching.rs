//! Matchings in a graph over `0..n`: maximum-cardinality (Edmonds' blossoms) and best first, and the connected
//! parts of a graph.
//!
//! Pure: knows nothing of members, bandwidths or rounds. The same graph gives the same matching; a caller that
//! wants chance numbers its vertices by chance.

/// An undirected graph over `0..n` as rows of bits: 1,000 vertices are 125 KB whatever the number of edges.
#[derive(Clone, Debug)]
pub(crate) struct Graph {
    vertices: usize,
    row_words: usize,
    bits: Vec<u64>,
}

impl Graph {
    /// A graph without edges.
    pub(crate) fn new(vertices: usize) -> Self {
        let row_words = vertices.div_ceil(64);
        Self {
            vertices,
            row_words,
            bits: vec![0; vertices * row_words],
        }
    }

    /// Adds an edge; one from a vertex to itself is not an edge.
    pub(crate) fn connect(&mut self, a: usize, b: usize) {
        if a != b {
            self.bits[a * self.row_words + b / 64] |= 1 << (b % 64);
            self.bits[b * self.row_words + a / 64] |= 1 << (a % 64);
        }
    }

    /// Whether there is this edge.
    pub(crate) fn has(&self, a: usize, b: usize) -> bool {
        self.bits[a * self.row_words + b / 64] >> (b % 64) & 1 == 1
    }

    /// The neighbours of a vertex in ascending order.
    pub(crate) fn neighbours(&self, vertex: usize) -> impl Iterator<Item = usize> + '_ {
        let row = &self.bits[vertex * self.row_words..(vertex + 1) * self.row_words];
        row.iter().enumerate().flat_map(|(word, &bits)| {
            std::iter::successors((bits != 0).then_some(bits), |bits| {
                let rest = bits & (bits - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |bits| word * 64 + bits.trailing_zeros() as usize)
        })
    }

    /// For each vertex the smallest vertex of its connected part.
    pub(crate) fn components(&self) -> Vec<usize> {
        let mut component = vec![usize::MAX; self.vertices];
        let mut queue = Vec::new();
        for first in 0..self.vertices {
            if component[first] != usize::MAX {
                continue;
            }
            component[first] = first;
            queue.push(first);
            while let Some(vertex) = queue.pop() {
                for neighbour in self.neighbours(vertex) {
                    if component[neighbour] == usize::MAX {
                        component[neighbour] = first;
                        queue.push(neighbour);
                    }
                }
            }
        }
        component
    }
}

/// Disjoint pairs over `0..n`; grows, and never loses a vertex again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Matching {
    mates: Vec<Option<usize>>,
}

impl Matching {
    /// Nobody is matched.
    pub(crate) fn new(vertices: usize) -> Self {
        Self {
            mates: vec![None; vertices],
        }
    }

    /// Who a vertex is matched with.
    #[cfg(test)]
    pub(crate) fn mate(&self, vertex: usize) -> Option<usize> {
        self.mates[vertex]
    }

    /// The pairs, the smaller vertex first, in ascending order.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.mates
            .iter()
            .enumerate()
            .filter_map(|(vertex, mate)| mate.filter(|&mate| vertex < mate).map(|mate| (vertex, mate)))
    }

    /// The vertices without a mate, in ascending order.
    pub(crate) fn left_over(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.mates.len()).filter(|&vertex| self.mates[vertex].is_none())
    }

    /// Takes each edge, in the order given, whose two ends are both free.
    pub(crate) fn extend_greedily(&mut self, edges: impl IntoIterator<Item = (usize, usize)>) {
        for (a, b) in edges {
            if a != b && self.mates[a].is_none() && self.mates[b].is_none() {
                self.mates[a] = Some(b);
                self.mates[b] = Some(a);
            }
        }
    }

    /// Grows to a maximum-cardinality matching of the graph by augmenting paths (Edmonds, "Paths, trees, and
    /// flowers", 1965; breadth first with contracted blossoms).
    ///
    /// A search costs at most the graph's edges, and a search that finds nothing takes its whole tree out of
    /// every later one, so the time is edges times augmentations: milliseconds for 1,000 vertices.
    pub(crate) fn augment(&mut self, graph: &Graph) {
        let mut search = Search::new(graph);
        for root in 0..graph.vertices {
            if self.mates[root].is_none() {
                let Some(end) = search.run(root, &self.mates) else {
                    continue;
                };
                self.flip(end, &search.parents);
            }
        }
    }

    /// Swaps matched and unmatched edges along the path that ends in `end`.
    fn flip(&mut self, end: usize, parents: &[usize]) {
        let mut vertex = end;
        loop {
            let parent = parents[vertex];
            let next = self.mates[parent].replace(vertex);
            self.mates[vertex] = Some(parent);
            match next {
                Some(next) => vertex = next,
                // The root had no mate before.
                None => return,
            }
        }
    }
}

/// One search for an augmenting path, and what earlier ones ruled out.
struct Search<'g> {
    graph: &'g Graph,
    /// The vertex before this one on an alternating path from the root; `NONE` when there is none yet.
    parents: Vec<usize>,
    /// The vertex that stands for the blossom that this one is in; itself when in none.
    bases: Vec<usize>,
    /// Reached at an even distance from the root, so that its edges are followed.
    even: Vec<bool>,
    in_blossom: Vec<bool>,
    on_path: Vec<bool>,
    queue: Vec<usize>,
    /// In the tree of a search that found nothing: no augmenting path ever goes through it again.
    spent: Vec<bool>,
}

const NONE: usize = usize::MAX;

impl<'g> Search<'g> {
    fn new(graph: &'g Graph) -> Self {
        let n = graph.vertices;
        Self {
            graph,
            parents: vec![NONE; n],
            bases: (0..n).collect(),
            even: vec![false; n],
            in_blossom: vec![false; n],
            on_path: vec![false; n],
            queue: Vec::with_capacity(n),
            spent: vec![false; n],
        }
    }

    /// The free vertex at the other end of an augmenting path from `root`, whose steps are then in `parents`.
    fn run(&mut self, root: usize, mates: &[Option<usize>]) -> Option<usize> {
        self.parents.fill(NONE);
        self.even.fill(false);
        for (vertex, base) in self.bases.iter_mut().enumerate() {
            *base = vertex;
        }
        self.queue.clear();
        self.queue.push(root);
        self.even[root] = true;
        let mut next = 0;
        while let Some(&vertex) = self.queue.get(next) {
            next += 1;
            for to in self.graph.neighbours(vertex) {
                if self.spent[to] || self.bases[vertex] == self.bases[to] || mates[vertex] == Some(to) {
                    continue;
                }
                let is_even = to == root || mates[to].is_some_and(|mate| self.parents[mate] != NONE);
                if is_even {
                    self.contract(vertex, to, mates);
                } else if self.parents[to] == NONE {
                    self.parents[to] = vertex;
                    match mates[to] {
                        None => return Some(to),
                        Some(mate) => {
                            self.even[mate] = true;
                            self.queue.push(mate);
                        }
                    }
                }
            }
        }
        for vertex in 0..self.spent.len() {
            self.spent[vertex] |= self.even[vertex] || self.parents[vertex] != NONE;
        }
        None
    }

    /// Two even vertices are neighbours: an odd cycle. From now on it counts as one even vertex.
    fn contract(&mut self, a: usize, b: usize, mates: &[Option<usize>]) {
        let base = self.meeting_point(a, b, mates);
        self.in_blossom.fill(false);
        self.mark(a, base, b, mates);
        self.mark(b, base, a, mates);
        for vertex in 0..self.bases.len() {
            if self.in_blossom[self.bases[vertex]] {
                self.bases[vertex] = base;
                if !self.even[vertex] {
                    self.even[vertex] = true;
                    self.queue.push(vertex);
                }
            }
        }
    }

    /// The first base that the paths from two even vertices to the root share.
    fn meeting_point(&mut self, a: usize, b: usize, mates: &[Option<usize>]) -> usize {
        self.on_path.fill(false);
        let mut at = self.bases[a];
        loop {
            self.on_path[at] = true;
            // The root alone has no mate, and every other even vertex has a parent beyond its mate.
            let Some(mate) = mates[at] else { break };
            at = self.bases[self.parents[mate]];
        }
        let mut at = self.bases[b];
        while !self.on_path[at] {
            let Some(mate) = mates[at] else { break };
            at = self.bases[self.parents[mate]];
        }
        at
    }

    /// Marks the blossom's bases from `vertex` down to `base`, and lets paths go around it by way of `child`.
    fn mark(&mut self, mut vertex: usize, base: usize, mut child: usize, mates: &[Option<usize>]) {
        while self.bases[vertex] != base {
            let Some(mate) = mates[vertex] else { return };
            self.in_blossom[self.bases[vertex]] = true;
            self.in_blossom[self.bases[mate]] = true;
            self.parents[vertex] = child;
            child = mate;
            vertex = self.parents[mate];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn graph(n: usize, edges: &[(usize, usize)]) -> Graph {
        let mut graph = Graph::new(n);
        for &(a, b) in edges {
            graph.connect(a, b);
        }
        graph
    }

    fn maximum(graph: &Graph) -> Matching {
        let mut matching = Matching::new(graph.vertices);
        matching.augment(graph);
        matching
    }

    /// The size of the largest matching, by trying everything.
    fn brute_force(edges: &[(usize, usize)], used: u32) -> usize {
        let Some((&(a, b), rest)) = edges.split_first() else {
            return 0;
        };
        let without = brute_force(rest, used);
        if a == b || used & (1 << a | 1 << b) != 0 {
            return without;
        }
        without.max(1 + brute_force(rest, used | 1 << a | 1 << b))
    }

    proptest! {
        #[test]
        fn a_matching_is_as_large_as_the_best_of_all_and_only_of_edges(
            n in 1_usize..=8, picks in prop::collection::vec((0_usize..8, 0_usize..8), 0..14),
            start in prop::collection::vec(0_usize..14, 0..3),
        ) {
            let edges: Vec<_> = picks.iter().map(|&(a, b)| (a % n, b % n)).collect();
            let graph = graph(n, &edges);
            let mut matching = Matching::new(n);
            matching.extend_greedily(start.iter().filter_map(|&edge| edges.get(edge).copied()));
            matching.augment(&graph);
            for (a, b) in matching.pairs() {
                prop_assert_eq!(matching.mate(b), Some(a));
                prop_assert!(graph.neighbours(a).any(|neighbour| neighbour == b));
            }
            prop_assert_eq!(matching.pairs().count(), brute_force(&edges, 0));
            prop_assert_eq!(matching.left_over().count(), n - 2 * matching.pairs().count());
        }

        #[test]
        fn a_matching_of_a_larger_graph_passes_tutte_and_berges_test_by_petals(
            seed: u64, n in 9_usize..90, degree in 1_usize..5,
        ) {
            // Odd cycles joined at random are full of blossoms. Augmenting twice must find nothing more, also
            // when the second run starts from the vertices in another order.
            let mut draws = crate::draws::Draws::new("matching test", &[seed]);
            let mut edges = Vec::new();
            for _ in 0..n * degree / 2 {
                edges.push((draws.below(n as u64) as usize, draws.below(n as u64) as usize));
            }
            let size = maximum(&graph(n, &edges)).pairs().count();
            let mut order: Vec<usize> = (0..n).collect();
            draws.shuffle(&mut order);
            let renamed: Vec<_> = edges.iter().map(|&(a, b)| (order[a], order[b])).collect();
            prop_assert_eq!(maximum(&graph(n, &renamed)).pairs().count(), size);
        }
    }

    #[test]
    fn an_odd_cycle_on_the_way_does_not_hide_a_partner() {
        // 0 - 1, a triangle 1-2-3 entered from its tip, 3 - 4: greedy pairs leave 0 and 4, the blossom joins them.
        let graph = graph(6, &[(0, 1), (1, 2), (2, 3), (3, 1), (3, 4), (2, 5)]);
        let mut matching = Matching::new(6);
        matching.extend_greedily([(2, 3)]);
        matching.augment(&graph);
        assert_eq!(matching.pairs().collect::<Vec<_>>(), [(0, 1), (2, 5), (3, 4)]);
    }

    #[test]
    fn parts_of_a_graph_are_named_by_their_smallest_vertex() {
        let graph = graph(70, &[(69, 3), (3, 65), (1, 2)]);
        let components = graph.components();
        assert_eq!(
            (components[69], components[65], components[2], components[0]),
            (3, 3, 1, 0)
        );
        assert_eq!(graph.neighbours(3).collect::<Vec<_>>(), [65, 69]);
    }
}
