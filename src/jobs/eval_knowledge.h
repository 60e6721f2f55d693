/* The knowledge map: which experts the router asks for which text.
 *
 * A domain d is a text; load[d][l][e] the share of its tokens for which expert e of layer l is active.  From these, with D domains of equal weight:
 *   specialisation  log2 of the expert's load in the domain over its mean over the domains; half a token is added to every count, so that it is finite
 *   load_entropy    of the layer's activations over its experts, over log N: 1, all alike; 0, one does all
 *   information     of the layer: mutual information, in bits, between the domain and the expert of an activation; 0: no expert knows its domain
 *   router_entropy  of the softmax of the router's scores, mean over tokens, over log N: 1: it has no opinion
 *   together        pairs of experts: share of tokens with both, over what it would be if each were chosen without the other
 */
#ifndef JOBS_EVAL_KNOWLEDGE_H
#define JOBS_EVAL_KNOWLEDGE_H

#include "jobs/eval.h"

enum { KNOWLEDGE_PAIR_EXPERTS = 256, KNOWLEDGE_INLINE = 16384, KNOWLEDGE_TOP = 5 };

struct knowledge_domain {
    char name[40];
    double tokens, nats, hits; /* the router's */
    double *count;             /* [layers][experts] tokens */
    double *load, *special;    /* [layers][experts], by knowledge_finish() */
};

struct knowledge {
    int layers, experts, domains;
    struct knowledge_domain *domain;
    double tokens;   /* of all domains */
    double *both;    /* [layers][experts][experts] tokens with both; NULL: too many experts for that */
    double *opinion; /* [layers] sum over tokens of the router's entropy over log N */
    double *load_entropy, *information, *router_entropy; /* [layers], by knowledge_finish() */
};

void knowledge_open(struct knowledge *k, int layers, int experts, int domains);
void knowledge_close(struct knowledge *k);
/* Adds rows of a layer: their sets ([rows][bits_words(N)]) and scores ([rows][N]). */
void knowledge_add(struct knowledge *k, int domain, int layer, int rows, const uint64_t *set, const float *z);
void knowledge_finish(struct knowledge *k);
/* The experts that say most about a domain: by load * specialisation.  at[n]: layer * experts + expert.  Returns how many are above 0. */
int knowledge_top(const struct knowledge *k, int domain, int *at, int n);

/* Reads the domains, runs them through the open model with its current router, and puts "knowledge" into result.json and all of it into
 * OUTPUT/knowledge.json. */
status eval_knowledge(struct eval_run *r, struct model *model, const char *directory, struct err *e);
void eval_print_knowledge(const struct eval_run *r);

#endif
